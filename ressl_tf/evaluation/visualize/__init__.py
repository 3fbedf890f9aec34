"""Pictures, as PNG files: one module each, `figures` is what they share.

`tsne`, `neighbours` and `curves` show what one or several trainings have
learnt, and how; `views_sheet` what one is shown; `sweep_plot` the numbers of
many side by side.
"""

from ressl_tf.evaluation.visualize.curves import compare_curves
from ressl_tf.evaluation.visualize.curves import plot_curves
from ressl_tf.evaluation.visualize.neighbours import choose_queries
from ressl_tf.evaluation.visualize.neighbours import compare_neighbours
from ressl_tf.evaluation.visualize.neighbours import plot_neighbours
from ressl_tf.evaluation.visualize.sweep_plot import plot_sweep
from ressl_tf.evaluation.visualize.tsne import plot_tsne
from ressl_tf.evaluation.visualize.tsne import project
from ressl_tf.evaluation.visualize.views_sheet import plot_views

__all__ = [
    "choose_queries",
    "compare_curves",
    "compare_neighbours",
    "plot_curves",
    "plot_neighbours",
    "plot_sweep",
    "plot_tsne",
    "plot_views",
    "project",
]

"""Pictures, as PNG files: one module each, `figures` is what they share.

`neighbours` and `curves` show what a training has learnt, and how;
`views_sheet` what it is shown; `sweep_plot` several trainings side by side.
"""

from ressl_tf.evaluation.visualize.curves import plot_curves
from ressl_tf.evaluation.visualize.neighbours import choose_queries
from ressl_tf.evaluation.visualize.neighbours import plot_neighbours
from ressl_tf.evaluation.visualize.sweep_plot import plot_sweep
from ressl_tf.evaluation.visualize.views_sheet import plot_views

__all__ = [
    "choose_queries",
    "plot_curves",
    "plot_neighbours",
    "plot_sweep",
    "plot_views",
]

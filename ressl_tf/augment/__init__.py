"""Views: random crops with colour distortion, as keras-cv layers.

`strong_view` and `weak_view` are the method's two augmentations, `make_view`
any other, `make_views` several of a kind: see `roles`. `view` is the layer,
`options` says what it can be given, `crops`, `colors` and `randaugment` are the
operations it is made of, `draws` its random numbers. To add an operation: write
its function, give `View` its arguments and `options` their ranges, draw its
parameters in `View.draw`, apply them in `View.distort`.
"""

from ressl_tf.augment.roles import make_view
from ressl_tf.augment.roles import make_views
from ressl_tf.augment.roles import strong_view
from ressl_tf.augment.roles import weak_view
from ressl_tf.augment.view import View

__all__ = ["View", "make_view", "make_views", "strong_view", "weak_view"]

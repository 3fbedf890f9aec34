"""Views: random crops with colour distortion, as keras-cv layers.

`strong_view` and `weak_view` are the method's two augmentations, `make_view`
any other, `make_views` several of a kind. `view` is the layer, `crops` and
`colors` are the operations it is made of, `draws` its random numbers. To add
an operation: write its function, give `View` its arguments, draw its
parameters in `View.sample`, apply them in `View._distort`.
"""

from ressl_tf.augment.view import View
from ressl_tf.augment.view import make_view
from ressl_tf.augment.view import make_views
from ressl_tf.augment.view import strong_view
from ressl_tf.augment.view import weak_view

__all__ = ["View", "make_view", "make_views", "strong_view", "weak_view"]

"""How good the frozen features are: extraction, probes and pictures.

Each protocol is a module: `features` (images to features), `knn` (the monitor
of a running training) and `linear` (probes on frozen features); `visualize`
draws: neighbours, curves, views. Import the module you need; this package
imports none.
"""

"""A run as one HTML page that needs nothing else.

`facts` is what the files of a run say, `tables` how results become tables,
`page` puts the sections into template.html.
"""

from ressl_tf.evaluation.report.page import write_report

__all__ = ["write_report"]

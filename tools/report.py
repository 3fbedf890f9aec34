"""A run as one HTML page that opens from disk: DIR/report.html.

    python -m tools.report --workdir=DIR

Numbers, curves, tables and pictures of what is there, of an unfinished run
too, and the commands that make what is not. See docs/evaluation.md.
"""

from absl import flags

from tools import command

WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run.", required=True
)


def main():
    from ressl_tf.evaluation import report

    print(report.write_report(WORKDIR.value))


if __name__ == "__main__":
    command.run(main)

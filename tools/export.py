"""Exports a run's encoder as a SavedModel for TensorFlow Serving.

python -m tools.export --workdir=DIR
"""

from absl import flags

from tools import command

WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run.", required=True
)
NAME = flags.DEFINE_string("name", "encoder", "Name of the export.")
BRANCH = flags.DEFINE_enum(
    "branch", "student", ["student", "teacher"], "Which network."
)


def main():
    from ressl_tf import export

    print(export.export(WORKDIR.value, NAME.value, BRANCH.value))


if __name__ == "__main__":
    command.run(main)

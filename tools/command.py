"""How every tool starts and ends: quiet logs, one-line errors, exit codes.

0 done, 2 the user's mistake (one line), 1 anything else.
"""

import ast
import contextlib
import logging as python_logging
import os
import sys
import traceback
import warnings
from pathlib import Path

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

# Before TensorFlow loads: its own start-up messages say nothing to a user.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# --help of a tool lists its own flags: let it own those defined below.
flags.disclaim_key_flags()

logger = python_logging.getLogger("ressl_tf")

ROOT = Path(__file__).resolve().parent.parent


def run(main, words=()):
    """Runs a tool under absl; a ValueError of ours is the user's mistake.

    Args:
        main: function without arguments; with `words`, of the word given.
        words: of which the command line has to have one, beside flags; none:
            it has flags alone.
    """

    def wrapped(argv):
        arguments = argv[1:]
        _check_words(arguments, words)
        _set_up_messages()
        _import_tensorflow()
        from ressl_tf import cluster
        from ressl_tf import monitor

        try:
            main(*arguments)
        except ValueError as error:
            if not _is_ours(error):
                raise
            fail(error)
        except monitor.NotFiniteError as error:
            fail(error, code=1)
        except cluster.ClusterError as error:
            with contextlib.suppress(SystemExit):
                fail(error, code=1)
            # TensorFlow's own end would wait for the lost worker.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)

    app.run(wrapped, flags_parser=_parse)


def define_config_flags(config=None, workdir=None):
    """The flags of who trains; both are required without a default.

    Args:
        config: default path of a recipe.
        workdir: default folder of the run.
    """
    config_flags.DEFINE_config_file(
        "config",
        config,
        "Recipe: a file of configs/, overridden by --config.x.y=z; "
        "FILE:quick is a form of it that takes seconds.",
    )
    flags.DEFINE_string("workdir", workdir, "Folder of the run.")
    if config is None:
        flags.mark_flag_as_required("config")
    if workdir is None:
        flags.mark_flag_as_required("workdir")


def define_strategy_flags():
    """The flags that say where a run is trained; the recipe stays the same."""
    flags.DEFINE_enum(
        "strategy",
        "default",
        ["default", "mirrored", "multi_worker", "tpu"],
        "One device; all GPUs of this machine; several machines (as TF_CONFIG "
        "describes them); a TPU.",
    )
    flags.DEFINE_integer(
        "replicas",
        None,
        "With --strategy=mirrored: how many GPUs, or CPU devices, to use; "
        "default: all GPUs.",
        lower_bound=1,
    )
    flags.DEFINE_string(
        "tpu", None, "With --strategy=tpu: its name or address; or 'local'."
    )
    flags.DEFINE_integer(
        "cluster_timeout",
        600,
        "With --strategy=multi_worker: seconds to wait for the other workers.",
        lower_bound=1,
    )
    flags.DEFINE_string(
        "data_service",
        None,
        "Address of a tf.data service that makes the batches, as "
        "grpc://HOST:PORT; default: they are made here.",
    )


def make_strategy():
    """The strategy that `define_strategy_flags`' flags name."""
    from ressl_tf import cluster

    values = flags.FLAGS
    return cluster.make_strategy(
        values.strategy,
        replicas=values.replicas,
        tpu=values.tpu,
        cluster_timeout=values.cluster_timeout,
    )


def define_subject_flags():
    """The flags that say what is evaluated and on what."""
    define_encoder_flags()
    define_source_flags("Labelled images")
    flags.DEFINE_bool(
        "stream",
        False,
        "Read images while they are needed, for sets that memory does not "
        "hold.",
    )
    flags.DEFINE_integer(
        "shorter_side",
        None,
        "With --stream: resize images to this before their centre is cut out, "
        "as 256 for encoders of 224; default: the encoder's size.",
        lower_bound=1,
    )


def define_source_flags(images):
    """The flags that say whose features are taken, and whether they are kept.

    Args:
        images: what the images have to be, for the help.
    """
    flags.DEFINE_string(
        "source", None, f"{images}; default: those of the pre-training."
    )
    flags.DEFINE_string(
        "data_dir", None, "For tfds: sources; default: the pre-training's."
    )
    flags.DEFINE_bool(
        "cache_features",
        True,
        "Keep the features in the results' folder, and take them from there "
        "if weights and images are the same.",
    )


def define_encoder_flags():
    """The flags that say which encoder is evaluated."""
    flags.DEFINE_string(
        "workdir",
        None,
        "Folder of a run; or an export (DIR/export/NAME); or a .keras file.",
        required=True,
    )
    define_branch_flag()


def define_branch_flag():
    """The flag that says which of a run's networks is meant."""
    flags.DEFINE_enum(
        "branch",
        None,
        ["student", "teacher"],
        "Which network of a run; default: the student.",
    )


def open_encoder():
    """The `Encoder` that `define_encoder_flags`' flags name."""
    from ressl_tf.evaluation import subject

    return subject.open_encoder(flags.FLAGS.workdir, flags.FLAGS.branch)


def open_subject(stream=False):
    """The `Subject` that `define_subject_flags`' flags name.

    Args:
        stream: as --stream, whether or not it is given.
    """
    from ressl_tf.evaluation import subject

    values = flags.FLAGS
    return subject.open_subject(
        values.workdir,
        values.branch,
        values.source,
        values.data_dir,
        stream=values.stream or stream,
        shorter_side=values.shorter_side,
    )


def extract(subject):
    """`Subject.extract` as `define_subject_flags`' flags say, with a bar."""
    return subject.extract(progress=True, cache=flags.FLAGS.cache_features)


def positive_numbers(name, texts):
    """The values of a list flag as ints from 1 on."""
    for text in texts:
        if not text.strip().isdigit() or int(text) < 1:
            raise ValueError(
                f"`--{name}` must be whole numbers from 1, with commas. "
                f"Received: {text!r}"
            )
    if not texts:
        raise ValueError(
            f"`--{name}` must be at least one number. Received: none"
        )
    return [int(text) for text in texts]


def numbers(name, texts, count):
    """The values of a list flag as `count` floats."""
    try:
        values = [float(text) for text in texts]
    except ValueError:
        values = []
    if len(values) != count:
        raise ValueError(
            f"`--{name}` must be {count} numbers, with commas. "
            f"Received: {','.join(texts)!r}"
        )
    return values


def fail(message, code=2):
    """Prints the mistake in one line and exits."""
    line = " ".join(str(message).split())
    print(f"error: {line}", file=sys.stderr)
    sys.exit(code)


def _check_words(arguments, words):
    received = " ".join(arguments)
    if not words and arguments:
        fail(f"Only flags are taken, as --name=value. Received: {received}")
    if words and (len(arguments) != 1 or arguments[0] not in words):
        fail(
            f"One word is needed beside flags: {', '.join(words)}. "
            f"Received: {received or 'none'}"
        )


def _set_up_messages():
    """Ours one line each; of the libraries' only warnings, one line each."""
    logging.set_verbosity(logging.WARNING)
    handler = python_logging.StreamHandler()
    handler.setFormatter(python_logging.Formatter("%(levelname)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(python_logging.INFO)
    logger.propagate = False

    def show_warning(message, category, *args, **kwargs):
        logger.warning("%s", str(message).strip().partition("\n")[0])

    warnings.showwarning = show_warning


def _import_tensorflow():
    """Loads TensorFlow without what it says before its log level applies."""
    sys.stderr.flush()
    with contextlib.ExitStack() as stack:
        null = stack.enter_context(open(os.devnull, "w"))
        stderr = os.dup(2)
        stack.callback(os.close, stderr)
        os.dup2(null.fileno(), 2)
        stack.callback(os.dup2, stderr, 2)
        from tensorflow import keras

        dir(keras)  # `tensorflow.keras` loads on first use


def _is_ours(error):
    """Whether this project raised it: one of a library's is a bug."""
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    folders = [ROOT / folder for folder in ("ressl_tf", "configs", "tools")]
    return any(folder in raised_in.resolve().parents for folder in folders)


def _parse(argv):
    try:
        rest = flags.FLAGS(argv)
        if getattr(flags.FLAGS, "config", None) is not None:
            # A file that could not be read says so when it is first used.
            flags.FLAGS.config.to_dict()
        return rest
    except SystemExit:  # --help; absl's exit code is that of a mistake
        sys.exit(0)
    except OSError as error:
        reason = str(error).splitlines()[-1].rpartition("failure to load: ")
        fail(f"`--config` must name a recipe's file: {reason[2].strip()}")
    except (AttributeError, KeyError) as error:
        message = str(error.args[0])
        if message.startswith("'\\'"):  # ml_collections quotes its own
            message = ast.literal_eval(message)
        fail(f"No such setting in the recipe: {message}")
    except (flags.Error, TypeError, ValueError) as error:
        # One raised in a recipe's file arrives with its traceback as text.
        message = str(error).strip()
        if "Traceback" in message:
            message = message.splitlines()[-1].partition(": ")[2]
        fail(message)

"""A tf.data service, on the machines that make the batches.

python -m tools.data_service --dispatcher --port=5050 --workers=HOST1:5051,...
python -m tools.data_service --worker=HOST1:5051 --dispatcher_address=HOST:5050

Start the dispatcher and all its workers, then train with
--data_service=grpc://HOST:5050
"""

import signal

from absl import flags

from tools import command

DISPATCHER = flags.DEFINE_bool("dispatcher", False, "Run the dispatcher.")
PORT = flags.DEFINE_integer(
    "port", 5050, "Of the dispatcher; 0 takes a free one.", lower_bound=0
)
WORKERS = flags.DEFINE_list(
    "workers", [], "Of the dispatcher: the HOST:PORT of each of its workers."
)
WORKER = flags.DEFINE_string(
    "worker", None, "Run the worker with this HOST:PORT, as others reach it."
)
DISPATCHER_ADDRESS = flags.DEFINE_string(
    "dispatcher_address", None, "Of a worker: its dispatcher, HOST:PORT."
)


def main():
    from ressl_tf.data import service

    if DISPATCHER.value == (WORKER.value is not None):
        raise ValueError(
            "Give either --dispatcher or --worker=HOST:PORT. Received: "
            f"dispatcher={DISPATCHER.value}, worker={WORKER.value!r}"
        )
    if DISPATCHER.value:
        server = service.start_dispatcher(PORT.value, WORKERS.value)
        print(f"dispatcher: {server.target}", flush=True)
    else:
        server = service.start_worker(WORKER.value, DISPATCHER_ADDRESS.value)
        print(f"worker: {WORKER.value}", flush=True)
    # Python would not look for Ctrl-C before the server's end.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    server.join()


if __name__ == "__main__":
    command.run(main)

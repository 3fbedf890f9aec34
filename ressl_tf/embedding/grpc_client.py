"""TensorFlow Serving by gRPC."""

import urllib.parse

import tensorflow as tf

from ressl_tf.embedding.server import SIGNATURE
from ressl_tf.embedding.server import Refused
from ressl_tf.embedding.server import ServerClient
from ressl_tf.embedding.server import Unavailable


class GrpcClient(ServerClient):
    """A model that TensorFlow Serving serves by gRPC.

    Args, raises: as `RestClient`; the server is grpc://HOST:PORT.
    """

    def __init__(self, server, *args, **kwargs):
        import grpc
        from tensorflow_serving.apis import model_service_pb2_grpc
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        channel = grpc.insecure_channel(
            urllib.parse.urlsplit(server).netloc,
            options=[
                # 4 MB of embeddings are soon more than that.
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                # How long to wait is said here, once.
                ("grpc.initial_reconnect_backoff_ms", 200),
                ("grpc.min_reconnect_backoff_ms", 200),
                ("grpc.max_reconnect_backoff_ms", 1000),
            ],
        )
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(
            channel
        )
        self._models = model_service_pb2_grpc.ModelServiceStub(channel)
        super().__init__(server, *args, **kwargs)

    def _predict(self, files):
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        request.model_spec.name = self._name
        request.model_spec.signature_name = SIGNATURE
        if self._version is not None:
            request.model_spec.version.value = self._version
        tensor = request.inputs["image_bytes"]
        tensor.dtype = tf.string.as_datatype_enum
        tensor.tensor_shape.dim.add().size = len(files)
        tensor.string_val.extend(files)
        response = self._call(self._predictions.Predict, request)
        return {
            key: tf.make_ndarray(value)
            for key, value in response.outputs.items()
        }

    def _versions(self):
        import grpc
        from tensorflow_serving.apis import get_model_status_pb2 as status_pb2

        request = status_pb2.GetModelStatusRequest()
        request.model_spec.name = self._name
        try:
            response = self._call(self._models.GetModelStatus, request)
        except Refused as error:
            if error.__cause__.code() == grpc.StatusCode.UNIMPLEMENTED:
                return None
            raise
        name_of = status_pb2.ModelVersionStatus.State.Name
        return [
            (status.version, name_of(status.state))
            for status in response.model_version_status
        ] or None

    def _call(self, method, request):
        import grpc

        codes = grpc.StatusCode
        try:
            return method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            message = error.details() or error.code().name
            if error.code() in (codes.UNAVAILABLE, codes.DEADLINE_EXCEEDED):
                raise Unavailable(message) from error
            raise Refused(message, error.code() == codes.NOT_FOUND) from error

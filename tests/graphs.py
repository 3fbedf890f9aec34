"""What a traced function is made of: for tests of the train step's graph."""

import collections

import tensorflow as tf

Node = collections.namedtuple("Node", "operation name inputs types shapes")


def walk(function):
    """All nodes of a concrete function and of the functions it calls.

    Branches and bodies of control flow, their gradients and nested
    `tf.function`s are functions of the graph's library.

    Args:
        function: concrete function.

    Yields:
        `Node`s: the operation's and the node's name, the names of its
        arguments, the set of types of arguments and results as far as the
        operation leaves them open, and the list of shapes of its results.
    """
    graph = function.graph.as_graph_def(add_shapes=True)
    places = [("step", graph.node)]
    places += [
        (inner.signature.name, inner.node_def)
        for inner in graph.library.function
    ]
    for place, nodes in places:
        for node in nodes:
            types = {
                tf.dtypes.as_dtype(number)
                for attribute in node.attr.values()
                for number in (attribute.type, *attribute.list.type)
                if number  # 0 is "invalid": an attribute of another kind
            }
            shapes = [
                tf.TensorShape(shape)
                for shape in node.attr["_output_shapes"].list.shape
            ]
            yield Node(
                node.op, f"{place}/{node.name}", list(node.input), types, shapes
            )

"""What the method costs, measured: the subjects of `tools.benchmark`.

Each subject is a module with `measure(...)`, which returns a dict that JSON
can hold, and `table(result)`, which returns it as text.
"""

"""TensorRT: engines built from a bundle's graph, cached, tested against the CPU, and run on streams of our own.

``module`` opens TensorRT or TensorRT-RTX, ``graph`` reads what an engine depends on, ``build`` makes plans, ``cache``
keeps them, ``selftest`` compares them with the CPU, and ``network`` runs them.
"""

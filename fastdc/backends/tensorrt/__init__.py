"""TensorRT: engines built from a bundle's graph, cached, tested against the CPU, and run on the caller's stream."""

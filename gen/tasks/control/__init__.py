"""ControlNets: pictures of edges, depth or poses that a picture follows."""

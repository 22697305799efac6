"""The large language model: a generator of rationales, its gRPC service and its remote form."""

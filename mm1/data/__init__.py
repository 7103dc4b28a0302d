"""Reading finished shards while training: tokenizer, pictures, encoding, shards, mixture, packing; never the model."""

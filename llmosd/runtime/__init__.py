"""The model and all that runs it: catalogue, import, graphs, native operators, tokenizer, sampler."""

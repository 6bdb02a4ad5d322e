"""How the guide is made: data, tokenizer, examples, training, grading."""

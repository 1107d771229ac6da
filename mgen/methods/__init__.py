"""What recipes do with a model beside training it: generate, mutate, score variants."""

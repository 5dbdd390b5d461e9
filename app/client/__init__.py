"""SeedScope: which features of your sparse autoencoders would come back with another seed?"""

"""A torch module as a list of steps, by torch.fx; what torch.fx does not see in it is refused."""

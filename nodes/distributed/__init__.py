"""More than one GPU, through the engines that exist: their tokens in our order, our attention in their registries."""

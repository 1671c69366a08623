"""The helpers of the training loop, under the names that ``domainbed.lib`` gives them."""

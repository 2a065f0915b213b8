"""The engine under every optimizer: options, groups, states, resets, steps, loading and sharding."""

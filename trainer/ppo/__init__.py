"""PPO and PPO-ptx (Ouyang et al. 2022) against a policy, a reward and a reference over the network."""

"""The nano pair: a latent generator of simple scenes, trained here, and the pixel model that L2P makes of it."""

"""Raw brain scans -> a hierarchical VQ-VAE-2, its PixelCNN priors, new images and figures."""

__version__ = "0.1.0"

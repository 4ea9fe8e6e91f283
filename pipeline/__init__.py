"""Overtile: medical image segmentation on MONAI."""

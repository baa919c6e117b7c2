"""MeshNet stroke-lesion segmentation: commands here, what they call in the rooms below."""

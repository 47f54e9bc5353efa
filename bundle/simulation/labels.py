"""FreeSurfer's numbers of the structures that the simulated segmentation holds."""

BRAINSTEM = 16
LEFT = {"white": 2, "cortex": 3, "ventricle": 4, "cerebellum": 8, "deep": 10}
RIGHT = {"white": 41, "cortex": 42, "ventricle": 43, "cerebellum": 47, "deep": 49}

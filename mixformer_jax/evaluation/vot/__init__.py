"""VOT's short-term measures, anchor based (Kristan et al., VOT2020-2022): accuracy, robustness and EAO."""

"""What models and train steps cost: counted operations, and steps compiled or reckoned for chips that are not here."""

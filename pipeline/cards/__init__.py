"""Model cards of finished policies: what a README.md of the hub says of each."""

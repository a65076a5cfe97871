"""What results.json says, for readers: tables and plots, with the paper's figures beside them."""

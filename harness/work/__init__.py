"""Jobs on networks: their order, who does them, and what a person sees."""

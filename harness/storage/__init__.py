"""The files of trials and certifications, and every name that is written there."""

"""The Helm chart, its profiles, and the scripts that generate parts of it."""

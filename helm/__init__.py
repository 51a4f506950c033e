"""The Helm chart, its profiles, and what generates parts of it."""

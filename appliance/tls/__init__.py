"""The endpoint's side of TLS: certificates, who made them, where they are, and what uses them."""

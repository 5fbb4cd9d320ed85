"""What tests share: tiny models, servers, vocabularies."""

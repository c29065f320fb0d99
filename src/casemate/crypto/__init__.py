"""The only package that imports `cryptography`; everything else asks here."""

"""The conformance table: the same stories, told to this library and to its peers."""

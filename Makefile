# The two entry points. Everything else is `cargo`; see CONTRIBUTING.md.

CARGO ?= cargo

.DEFAULT_GOAL := help
.PHONY: help demo test

help:
	@echo 'make demo   build Watertight, run the suite on the reference VPN daemon, show the matrix'
	@echo 'make test   install what the tests need (as root, where apt-get is), run all tests'

# Needs a Rust toolchain and a C compiler, and nothing else: no root where user namespaces are allowed, no nft, no ip, no tcpdump.
demo:
	$(CARGO) run --locked --package watertight-cli -- run --subject reference --profile static-file

test:
	./tools/install-test-tools
	./tools/run-tests

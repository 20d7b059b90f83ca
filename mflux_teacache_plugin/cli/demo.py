"""Make pictures with the demo model: plain, with TeaCache, and plain with as many steps as were computed."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> int:
    return 0

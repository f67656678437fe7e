package ggmlsteer

const architectureToTry = "LLSTEER_TEST_ARCHITECTURE"

func tryArchitecture(string) {}

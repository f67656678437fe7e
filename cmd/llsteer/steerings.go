package main

import (
	"fmt"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/spf13/pflag"
)

// addSteer defines -s.
func addSteer(flags *pflag.FlagSet, specs *[]string) {
	flags.StringArrayVarP(specs, "steer", "s", nil, "steering file or control vector, and a strength: `FILE[:STRENGTH]`; several add up (default none, strength 1)")
	completeFiles(flags, "steer", "gguf")
}

// readSteerings reads what -s names.
func readSteerings(specs []string) ([]ggmlsteer.Active, error) {
	var active []ggmlsteer.Active
	for _, spec := range specs {
		path, strength := loader.ParseActive(spec)
		steering, err := loader.Read(path)
		if err != nil {
			return nil, err
		}
		active = append(active, ggmlsteer.Active{Steering: steering, Strength: strength})
	}
	return active, nil
}

// fitSteerings refuses steerings of another width or architecture than the model.
func fitSteerings(m *ggmlsteer.Model, specs []string, active []ggmlsteer.Active) error {
	info := m.Info()
	for i, a := range active {
		if err := a.Steering.CheckFits(info.Arch, info.Embd, info.Layers); err != nil {
			return fmt.Errorf("%s: %w", specs[i], err)
		}
	}
	return nil
}

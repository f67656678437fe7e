package main

import (
	"context"
	"fmt"
	"math"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/spf13/pflag"
)

// addSteer defines -s.
func addSteer(flags *pflag.FlagSet, specs *[]string) {
	flags.StringArrayVarP(specs, "steer", "s", nil, "steering file or control vector, and a strength: `FILE[:STRENGTH]`; several add up (default none, strength 1)")
	completeFiles(flags, "steer", "gguf")
}

// phaseFlags say which tokens are steered.
type phaseFlags struct {
	tokens string
	from   int
}

var phases = map[string]ggmlsteer.Phase{"": ggmlsteer.EveryToken, "all": ggmlsteer.EveryToken, "prompt": ggmlsteer.PromptTokens, "generated": ggmlsteer.GeneratedTokens}

func (f *phaseFlags) add(flags *pflag.FlagSet) {
	choiceVar(flags, &f.tokens, "steer-tokens", []string{"all", "prompt", "generated"}, "which tokens are steered; the first generated one still comes from the prompt's last (default all)")
	countVar(flags, &f.from, "steer-from", "", 0, 0, math.MaxInt32, "steer from the token at this position on, as tokenize counts them")
}

// apply gives all steerings the phase, and refuses one that they cannot have.
func (f *phaseFlags) apply(specs []string, active []ggmlsteer.Active) error {
	if len(active) == 0 && (f.tokens != "" || f.from != 0) {
		return badInput("-s FILE", "--steer-tokens and --steer-from are for a steering, and there is none")
	}
	for i := range active {
		active[i].Phase, active[i].From = phases[f.tokens], f.from
		if active[i].Phase == ggmlsteer.GeneratedTokens && active[i].Steering.PromptOnly {
			return badInput("leave out --steer-tokens", "%s steers prompts only (its job has only_hook_prompt), and cannot steer what is generated", specs[i])
		}
	}
	return nil
}

// openSteered opens the model with what -s names, in a phase; nil: every token is steered.
func (p *program) openSteered(ctx context.Context, model *modelFlags, specs []string, phase *phaseFlags) (*ggmlsteer.Model, []ggmlsteer.Active, error) {
	active, err := readSteerings(specs)
	if err != nil {
		return nil, nil, err
	}
	if phase != nil {
		if err := phase.apply(specs, active); err != nil {
			return nil, nil, err
		}
	}
	m, err := p.open(ctx, model)
	if err != nil {
		return nil, nil, err
	}
	if err := fitSteerings(m, specs, active); err != nil {
		m.Close()
		return nil, nil, err
	}
	return m, active, nil
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

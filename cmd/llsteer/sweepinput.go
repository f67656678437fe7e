package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/llsteer/llsteer/optimize"
	"github.com/llsteer/llsteer/testdata/demo"
)

// neutralText is what a steering should leave alone.
const neutralText = `The bridge was built in 1932 and has two lanes in each direction. Most of the stone came from a quarry ` +
	`near the river. In winter the road is closed when there is snow on the hills, and the bus stops at the old station.`

// A sweepInput is a sweep's texts as tokens, its strengths and its files.
type sweepInput struct {
	prompts     [2][][]ggmlsteer.Token // for positive strengths, for negative ones
	hasReverse  bool                   // the two differ
	neutral     []ggmlsteer.Token
	strengths   []float64
	steerings   []*loader.Steering
	completions [][]measuredCompletion // of each steering
}

// sweepInput reads and checks all that a sweep works on, and opens the model.
func (p *program) sweepInput(ctx context.Context, f *sweepFlags) (*sweepInput, *ggmlsteer.Model, error) {
	in := &sweepInput{}
	var err error
	if in.strengths, err = parseStrengths(f.strengths); err != nil {
		return nil, nil, err
	}
	if err := f.readSteerings(in); err != nil {
		return nil, nil, err
	}
	texts, err := p.sweepTexts(f)
	if err != nil {
		return nil, nil, err
	}
	m, err := p.open(ctx, &f.model)
	if err != nil {
		return nil, nil, err
	}
	if err := f.fit(m, in, texts); err != nil {
		m.Close()
		return nil, nil, err
	}
	return in, m, nil
}

// fit refuses what does not fit the model, and makes tokens of all texts.
func (f *sweepFlags) fit(m *ggmlsteer.Model, in *sweepInput, texts *sweepTexts) error {
	info := m.Info()
	for i, s := range in.steerings {
		if err := s.CheckFits(info.Arch, info.Embd, info.Layers); err != nil {
			return fmt.Errorf("%s: %w", f.files[i], err)
		}
	}
	return f.tokenize(m, in, texts)
}

// inputs are the files that are read.
func (f *sweepFlags) inputs() []string {
	inputs := append(slices.Clone(f.files), f.model.path)
	for _, path := range []string{f.promptsFile, f.reversePrompts} {
		if path != "" {
			inputs = append(inputs, path)
		}
	}
	return inputs
}

// parseStrengths reads numbers and ranges; 0 is measured anyway.
func parseStrengths(specs []string) ([]float64, error) {
	if len(specs) == 0 {
		specs = []string{"-2:-1:0.5", "-0.75:0.75:0.25", "1:2:0.5"}
	}
	const most = 1000
	var all []float64
	for _, spec := range specs {
		numbers := make([]float64, 0, 3)
		for part := range strings.SplitSeq(spec, ":") {
			x, err := strconv.ParseFloat(strings.TrimSpace(part), 64)
			if err != nil || math.IsNaN(x) || math.IsInf(x, 0) {
				return nil, badInput("such as --strengths -1 --strengths 0.25:2:0.25", "--strengths: expected a number or FROM:TO:STEP, found %q", spec)
			}
			numbers = append(numbers, x)
		}
		switch {
		case len(numbers) == 1:
			all = append(all, numbers[0])
			continue
		case len(numbers) != 3 || !(numbers[2] > 0) || numbers[1] < numbers[0]:
			return nil, badInput("such as 0.25:2:0.25", "--strengths: expected FROM:TO:STEP with TO not below FROM and STEP above 0, found %q", spec)
		case (numbers[1]-numbers[0])/numbers[2] >= most:
			return nil, badInput("", "--strengths: %s are more than %d strengths", spec, most)
		}
		for i := 0; ; i++ {
			x := numbers[0] + float64(i)*numbers[2]
			if x > numbers[1]+1e-9*numbers[2] {
				break
			}
			all = append(all, math.Round(x*1e9)/1e9) // 0.1 three times is 0.3
		}
	}
	slices.Sort(all)
	all = slices.DeleteFunc(slices.Compact(all), func(x float64) bool { return x == 0 })
	if len(all) == 0 {
		return nil, badInput("", "--strengths: only 0 is left, which is no steering")
	}
	return all, nil
}

func (f *sweepFlags) readSteerings(in *sweepInput) error {
	if len(f.files) == 0 {
		return badInput("", "--steer is missing")
	}
	for _, file := range f.files {
		s, err := loader.Read(file)
		if err != nil {
			if path, _ := loader.ParseActive(file); path != file {
				return badInput("--strengths says which strengths are tried", "--steer: %s has a strength, and sweep tries many", file)
			}
			return err
		}
		in.steerings = append(in.steerings, s)
	}
	return nil
}

// sweepTexts are a sweep's texts before they are tokens.
type sweepTexts struct {
	prompts     [2][]string
	completions []string
	neutral     string
}

func (p *program) sweepTexts(f *sweepFlags) (*sweepTexts, error) {
	t := &sweepTexts{neutral: neutralText}
	var err error
	if t.prompts[0], err = p.texts("--prompt", f.prompts); err != nil {
		return nil, err
	}
	if f.promptsFile != "" {
		lines, err := p.textLines("--prompts", f.promptsFile)
		if err != nil {
			return nil, err
		}
		t.prompts[0] = append(t.prompts[0], lines...)
	}
	if f.reversePrompts != "" {
		if t.prompts[1], err = p.textLines("--reverse-prompts", f.reversePrompts); err != nil {
			return nil, err
		}
	}
	switch {
	case len(t.prompts[0]) == 0 && f.model.path == demoName:
		t.prompts[0] = demo.Prompts.English
		if len(t.prompts[1]) == 0 {
			t.prompts[1] = demo.Prompts.Spanish
		}
	case len(t.prompts[0]) == 0:
		return nil, badInput("-p TEXT, as often as you like, or --prompts FILE with one on each line", "there are no prompts to continue")
	case len(t.prompts[1]) == 0:
		t.prompts[1] = t.prompts[0]
	}
	if t.completions, err = p.texts("--completion", f.completions); err != nil {
		return nil, err
	}
	if len(f.neutral) > 0 {
		t.neutral, err = p.onlyText("--neutral", f.neutral)
	}
	return t, err
}

// textLines are the lines of a file that are not empty.
func (p *program) textLines(flag, path string) ([]string, error) {
	text, err := p.text(flag, "@"+path)
	if err != nil {
		return nil, err
	}
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimRight(line, "\r\n"); strings.TrimSpace(line) != "" {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return nil, badInput("one prompt on each line", "%s: %s has no prompts", flag, path)
	}
	return lines, nil
}

// tokenize makes tokens of all texts, and refuses those that are too long.
func (f *sweepFlags) tokenize(m *ggmlsteer.Model, in *sweepInput, texts *sweepTexts) error {
	in.hasReverse = !slices.Equal(texts.prompts[0], texts.prompts[1])
	for side, prompts := range texts.prompts {
		for _, prompt := range prompts {
			tokens, err := f.model.promptTokens(m, prompt)
			if err != nil {
				return err
			}
			if limit := f.model.context(m); len(tokens) > limit-f.tokens {
				return badInput("", "the prompt %q has %d tokens and its continuation up to %d, and the context is %d", prompt, len(tokens), f.tokens, limit)
			}
			in.prompts[side] = append(in.prompts[side], tokens)
		}
	}
	var err error
	if in.neutral, err = m.Tokenize(texts.neutral, false); err != nil {
		return err
	}
	if len(in.neutral) == 0 {
		return badInput("", "--neutral: the text has no tokens")
	}
	if err := f.model.fits(m, "the neutral text", len(in.neutral)); err != nil {
		return err
	}
	for i, s := range in.steerings {
		completions, err := f.completionsFor(m, s, texts)
		if err != nil {
			return fmt.Errorf("%s: %w", f.files[i], err)
		}
		in.completions = append(in.completions, completions)
	}
	return nil
}

// completionsFor are those of the command line after each prompt, or else those of
// the job that made a steering.
func (f *sweepFlags) completionsFor(m *ggmlsteer.Model, s *loader.Steering, texts *sweepTexts) ([]measuredCompletion, error) {
	if len(texts.completions) > 0 {
		var all []measuredCompletion
		for _, prompt := range texts.prompts[0] {
			some, err := f.model.measured(m, prompt, texts.completions, measuredCompletion{dst: true})
			if err != nil {
				return nil, err
			}
			all = append(all, some...)
		}
		return all, nil
	}
	if s.Recipe == "" {
		return nil, badInput("-c TEXT gives a completion", "the file does not hold the job that made it, and so no completions")
	}
	job, err := optimize.ReadJob("the file's job", []byte(s.Recipe))
	if err != nil {
		return nil, err
	}
	texter := f.model
	texter.chat, texter.system, texter.parseSpecial = job.Chat, job.System, job.ParseSpecial
	examples := job.Examples
	for _, prompt := range job.Prompts {
		examples = append(examples, optimize.Example{Prompt: prompt, Src: job.Src, Dst: job.Dst})
	}
	var all []measuredCompletion
	for _, e := range examples {
		for _, side := range []struct {
			texts []string
			dst   bool
		}{{e.Src, false}, {e.Dst, true}} {
			some, err := texter.measured(m, e.Prompt, side.texts, measuredCompletion{dst: side.dst, negative: e.Negative})
			if err != nil {
				return nil, err
			}
			all = append(all, some...)
		}
	}
	return all, nil
}

// measured are completions of a prompt, otherwise like one.
func (f *modelFlags) measured(m *ggmlsteer.Model, prompt string, texts []string, like measuredCompletion) ([]measuredCompletion, error) {
	var all []measuredCompletion
	before, err := f.promptTokens(m, prompt)
	if err != nil {
		return nil, err
	}
	for _, text := range texts {
		c := like
		c.prompt = len(before)
		if c.tokens, err = f.completionTokens(m, prompt, text); err != nil {
			return nil, err
		}
		if len(c.tokens) <= c.prompt {
			return nil, badInput("", "the completion %q has no tokens of its own after %q", text, prompt)
		}
		if err := f.fits(m, fmt.Sprintf("%q with its completion %q", prompt, text), len(c.tokens)); err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

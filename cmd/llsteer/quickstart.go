package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/llsteer/llsteer/optimize"
	"github.com/llsteer/llsteer/testdata/demo"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// What quickstart shows.
const (
	quickPrompts  = 3   // of each language
	quickTokens   = 25  // of each continuation
	quickStrength = 0.9 // the best measured: docs and recipe have the table
	quickTurned   = 2   // prompts of each language that have to turn
	vectorFile    = "spanish.gguf"
)

func (p *program) quickstart() *cobra.Command {
	var model modelFlags
	var save string
	cmd := &cobra.Command{
		Use:   "quickstart",
		Short: "the tutorial on the embedded model",
		Long: `Finds the vector that turns the embedded model from English to Spanish, continues
six prompts without and with it, three each way, and prints the commands that do
the same by hand. Ends with code 1 if the language does not turn.`,
		Example: `  llsteer quickstart --save demo-files`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			model.path = demoName
			return p.runQuickstart(cmd.Context(), &model, save)
		},
	}
	addFlags(cmd, "Quickstart", func(flags *pflag.FlagSet) {
		flags.StringVar(&save, "save", "", "write model, job and vector to a new `FOLDER`")
		model.addCompute(flags)
	})
	return cmd
}

// A quickResult is one prompt of quickstart --json.
type quickResult struct {
	generated
	Strength float64 `json:"strength"`
	Language string  `json:"language"` // of the steered text; "" where it is neither's clearly
}

// turned counts the prompts of one language that went on in the other.
type turned struct {
	Turned int `json:"turned"`
	Of     int `json:"of"`
}

func (p *program) runQuickstart(ctx context.Context, model *modelFlags, save string) error {
	began := time.Now()
	job, err := optimize.ReadJob(demoName, demo.Job)
	if err != nil {
		return err
	}
	job.Seed = model.seed
	if save != "" { // whether it can be made; it is once there is something to save
		if err := newFolder(save); err != nil {
			return err
		}
		os.Remove(save)
	}
	m, err := p.open(ctx, model)
	if err != nil {
		return err
	}
	defer m.Close()
	info := m.Info()
	if err := p.say("A %s of %d layers and width %d, which writes English and Spanish. The job: %d examples,\n"+
		"each with an English completion to make unlikely and a Spanish one to make likely.\n\n", info.Arch, info.Layers, info.Embd, len(job.Examples)); err != nil {
		return err
	}
	var first float64
	result, err := p.find(ctx, m, job, nil, func(s optimize.Step) {
		if s.Iter == 0 {
			first = s.Loss
		}
	})
	if err != nil {
		return err
	}
	if result.Stop == optimize.StopInterrupted {
		return context.Cause(ctx)
	}
	found := newReport(result, info, demoName, "", time.Since(began).Seconds())
	if err := p.say("A vector at layer %d: loss %.1f → %.1f nats in %d steps and %.1f seconds, norm %.2f.\n\n",
		found.Layers[0], first, found.Loss, found.Iters, found.Seconds, result.Norms[strconv.Itoa(found.Layers[0])]); err != nil {
		return err
	}
	results, err := p.quickContinue(ctx, model, result.Steering)
	if err != nil {
		return err
	}
	counts := map[string]turned{"english": {Of: quickPrompts}, "spanish": {Of: quickPrompts}}
	for _, r := range results {
		from, to := "english", "spanish"
		if r.Strength < 0 {
			from, to = to, from
		}
		if r.Language == to {
			counts[from] = turned{counts[from].Turned + 1, quickPrompts}
		}
	}
	if save != "" {
		found.File = filepath.Join(save, vectorFile)
		if err := saveDemo(save, result.Steering); err != nil {
			return err
		}
	}
	if p.json {
		err = p.printJSON(struct {
			Optimize report            `json:"optimize"`
			Results  []quickResult     `json:"results"`
			Turned   map[string]turned `json:"turned"`
			Commands []string          `json:"commands"`
		}{found, results, counts, quickCommands()})
	} else {
		err = p.say("%s", quickText(results, counts))
	}
	if err == nil && (counts["english"].Turned < quickTurned || counts["spanish"].Turned < quickTurned) {
		p.note("llsteer: the vector does not do what it should: at least %d of %d prompts of each language were to turn", quickTurned, quickPrompts)
		err = exitStatus(exitFailed)
	}
	return err
}

// quickContinue continues prompts of both languages towards the other one.
func (p *program) quickContinue(ctx context.Context, model *modelFlags, steering *loader.Steering) ([]quickResult, error) {
	// opened anew, so that the texts are those of the commands that are shown
	m, err := p.open(ctx, model)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	var results []quickResult
	for _, way := range []struct {
		prompts  []string
		strength float64
	}{{demo.Prompts.English, quickStrength}, {demo.Prompts.Spanish, -quickStrength}} {
		for _, prompt := range way.prompts[:quickPrompts] {
			tokens, err := model.promptTokens(m, prompt)
			if err != nil {
				return nil, err
			}
			g := &generation{program: p, model: m, options: ggmlsteer.GenerateOptions{Tokens: quickTokens}, context: model.context(m), prompts: [][]ggmlsteer.Token{tokens}}
			unsteered, err := g.batch(ctx, nil, nil)
			if err != nil {
				return nil, err
			}
			steered, err := g.batch(ctx, []ggmlsteer.Active{{Steering: steering, Strength: way.strength}}, nil)
			if err != nil {
				return nil, err
			}
			results = append(results, quickResult{
				generated: generated{prompt, steered[0], &unsteered[0]}, Strength: way.strength, Language: demo.Language(steered[0].Text),
			})
		}
	}
	return results, nil
}

func quickText(results []quickResult, counts map[string]turned) string {
	var b strings.Builder
	fmt.Fprintf(&b, "The same prompts, none of which the job holds, continued by %d tokens:\n", quickTokens)
	strength := 0.0
	for _, r := range results {
		if r.Strength != strength {
			strength = r.Strength
			fmt.Fprintf(&b, "\nwith strength %+g\n", strength)
		}
		fmt.Fprintf(&b, "\n  %s\n    unsteered  %s\n    steered    %s\n", r.Prompt, oneLine(r.Unsteered.Text), oneLine(r.Text))
	}
	fmt.Fprintf(&b, "\nTold by their stop words, %d of %d English prompts went on in Spanish and %d of %d Spanish ones in English.\n\nThe same by hand:\n",
		counts["english"].Turned, quickPrompts, counts["spanish"].Turned, quickPrompts)
	for _, c := range quickCommands() {
		fmt.Fprintf(&b, "  %s\n", c)
	}
	fmt.Fprintf(&b, "\n%s quickstart --save FOLDER writes model, job and vector down, to look at and to change.\n", name())
	return b.String()
}

// quickCommands do by hand what quickstart does.
func quickCommands() []string {
	generate := func(prompt string, strength float64) string {
		return fmt.Sprintf("%s generate -m demo -s "+vectorFile+":%g -n %d --compare -p %q", name(), strength, quickTokens, prompt)
	}
	return []string{
		name() + " optimize -m demo demo -o " + vectorFile,
		generate(demo.Prompts.English[0], quickStrength),
		generate(demo.Prompts.Spanish[0], -quickStrength),
	}
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

func newFolder(path string) error {
	if err := os.Mkdir(path, 0o777); err != nil {
		return badInput("name a new folder", "--save: cannot make the folder %s: %s", path, reason(err))
	}
	return nil
}

// saveDemo writes what quickstart worked with into a new folder.
func saveDemo(folder string, steering *loader.Steering) error {
	if err := newFolder(folder); err != nil {
		return err
	}
	for file, data := range map[string][]byte{"model.gguf": demo.Model, "spanish.yaml": demo.Job} {
		if err := writeFile(filepath.Join(folder, file), data); err != nil {
			return err
		}
	}
	return loader.Write(filepath.Join(folder, vectorFile), steering)
}

// say prints a text for people, which --json leaves out.
func (p *program) say(format string, args ...any) error {
	if p.json {
		return nil
	}
	return p.print(fmt.Sprintf(format, args...))
}

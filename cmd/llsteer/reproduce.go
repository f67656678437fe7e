package main

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/llsteer/llsteer/optimize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The example of the notebook that the method's authors published, and the layer that most of
// its runs steer.
const (
	notebookPrompt = "Some of my fondest childhood memories are from my summer vacations back when I was little. Every now and then, " +
		"after a long day of playing outside, I would come back home to be greeted with the delicious smell of my grandma's hazelnut cake " +
		"wafting out of the kitchen. In this recipe, I'll teach you how to make that very cake, and create your own summer memories.\n\n"
	notebookEnglish = "<h2>Ingredients</h2>\n\n* 1 cup of all-purpose flour"
	notebookSpanish = "<h2>Ingredientes</h2>\n\n* 1 taza de harina común"
	notebookLayer   = 10
	notebookLR      = 0.1
	notebookTokens  = 30
)

// notebookPrompts are continued with ten times the longest of all layers' vectors, by the sign.
var notebookPrompts = []struct {
	prompt string
	times  float64
}{
	{notebookPrompt, 10},
	{"My favorite sports are", 10},
	{"Unos de mis deportes favoritos incluyen", -10},
	{`"How dare you cheat on me with him!" Jim roared.`, -10},
}

// A notebookRun is one of its optimizations.
type notebookRun struct {
	Name      string         `json:"name"`
	Options   []string       `json:"options"` // of optimize, as flags
	Theirs    notebookResult `json:"theirs"`
	Ours      notebookResult `json:"ours"`
	Stop      optimize.Stop  `json:"stop"`
	allLayers bool
}

// A notebookResult is what a run found. Theirs counts one step more than led to its loss, and
// has the norm after that step.
type notebookResult struct {
	Steps int     `json:"steps"`
	Loss  float64 `json:"loss"` // nats
	Norm  float64 `json:"norm"` // of the vector, or the longest
	Layer *int    `json:"layer,omitempty"`
	// Before is the norm that entered the output-constrained stage.
	Before *float64 `json:"norm_before,omitempty"`
}

// A notebookLogprob is a log-probability of the unsteered model, in nats.
type notebookLogprob struct {
	Name   string  `json:"name"`
	Theirs float64 `json:"theirs"`
	Ours   float64 `json:"ours"`
}

// notebookRuns are the runs that steer a layer; target is for the one whose target the
// unsteered model's log-probabilities are.
func notebookRuns(target float64) []notebookRun {
	seven, entered := 7, 51.505
	return []notebookRun{
		{Name: "at most 20 steps, max_norm 20", Options: []string{"max_iters=20", "max_norm=20"}, Theirs: notebookResult{Steps: 21, Loss: 6.578, Norm: 20}},
		{Name: "target_loss 3", Options: []string{"target_loss=3"}, Theirs: notebookResult{Steps: 22, Loss: 2.852, Norm: 48.989}},
		{Name: "the same, vector_clamp 1", Options: []string{"target_loss=3", "vector_clamp=1", "starting_norm=1"}, Theirs: notebookResult{Steps: 12, Loss: 2.922, Norm: 25.416}},
		{Name: "target_loss 2, max_norm 1, affine_rank 2", Options: []string{"target_loss=2", "max_norm=1", "affine_rank=2", "max_affine_norm=2"}, Theirs: notebookResult{Steps: 15, Loss: 1.752, Norm: 1}},
		{Name: "each loss at its target", Options: []string{"do_target_loss_sum=false", fmt.Sprintf("target_loss=%g", target)}, Theirs: notebookResult{Steps: 10, Loss: 11.919, Norm: 32.257}},
		{Name: "target_loss 3, max_norm 30, noise 0.1", Options: []string{"target_loss=3", "max_norm=30", "noise_scale=0.1", "target_loss_target_iters=5"}, Theirs: notebookResult{Steps: 34, Loss: 2.539, Norm: 30}},
		{Name: "target_loss 2.5", Options: []string{"target_loss=2.5"}, Theirs: notebookResult{Steps: 25, Loss: 2.110, Norm: 51.505}},
		{Name: "the same, output-constrained for 100 steps", Options: []string{"target_loss=2.5", "do_output_constr=true", "output_constr_lr=0.059", "max_output_constr_iters=100"},
			Theirs: notebookResult{Steps: 24, Loss: 2.408, Norm: 43.429, Before: &entered}},
		{Name: "all layers, a vector each, 80 steps", allLayers: true, Options: []string{"lr=0.03", "max_iters=80", "regularization_weight=0.1", "sparsity_weight=0.1", "entropy_weight=10"},
			Theirs: notebookResult{Steps: 81, Loss: 51.664, Norm: 8.709, Layer: &seven}},
	}
}

// A reproduction is what reproduce --json prints.
type reproduction struct {
	Model    modelReport       `json:"model"`
	Layer    int               `json:"layer"`
	Logprobs []notebookLogprob `json:"logprobs"`
	Runs     []notebookRun     `json:"runs"`
	Texts    []notebookText    `json:"texts"`
}

type notebookText struct {
	Prompt   string  `json:"prompt"`
	Strength float64 `json:"strength"`
	Text     string  `json:"text"`
}

func (p *program) reproduce() *cobra.Command {
	var model modelFlags
	var layer, most int
	cmd := &cobra.Command{
		Use:   "reproduce -m MODEL",
		Short: "the method's published table on your own Gemma-2-2B",
		Long: `Runs what the notebook of the method's authors runs on Gemma-2-2B, with its example,
its options and its layer, and prints our numbers beside the notebook's. It takes
nine runs of 10 to 125 steps: hours on a few cores. A row is printed when it is done.

The notebook computes in bfloat16 and from other random starts. It counts one step
more than led to the loss that it prints, and its norms are those after that step.
With another model than Gemma-2-2B the numbers have nothing to be compared with.`,
		Example: `  llsteer reproduce -m gemma-2-2b.gguf`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.runReproduce(cmd.Context(), &model, layer, most)
		},
	}
	addFlags(cmd, "Reproduction", func(flags *pflag.FlagSet) {
		countVar(flags, &layer, "layer", "", notebookLayer, 0, math.MaxInt32, "layer `N` that one vector steers")
		countVar(flags, &most, "max-iters", "", 300, 0, math.MaxInt32, "most steps of a run, where it does not meet its target")
	})
	model.add(cmd)
	return cmd
}

func (p *program) runReproduce(ctx context.Context, flags *modelFlags, layer, most int) error {
	if flags.chat || flags.parseSpecial {
		return badInput("leave out --chat and --parse-special", "the notebook's prompt is plain text")
	}
	m, err := p.open(ctx, flags)
	if err != nil {
		return err
	}
	defer m.Close()
	info := m.Info()
	if _, err := (optimize.Layers{List: []int{layer}}).Resolve(info.Layers); err != nil {
		return err
	}
	if info.Arch != "gemma2" || info.Layers != 26 || info.Embd != 2304 {
		p.note("llsteer: the notebook's model is a gemma2 of 26 layers and width 2304, and %s a %s of %d layers and width %d: the numbers will be others",
			flags.path, info.Arch, info.Layers, info.Embd)
	}
	r := &reproduction{Model: modelReport{flags.path, info.Arch, info.Embd, info.Layers, info.Quantization}, Layer: layer}
	if err := p.notebookLogprobs(ctx, m, r); err != nil {
		return err
	}
	if err := p.say("%-46s %27s %27s\n%-46s %6s %10s %9s %6s %10s %9s\n", "", "the notebook", "llsteer", "", "steps", "loss", "norm", "steps", "loss", "norm"); err != nil {
		return err
	}
	var longest *loader.Steering
	for _, run := range notebookRuns(-max(r.Logprobs[0].Ours, r.Logprobs[1].Ours)) {
		if longest, err = p.notebookRun(ctx, m, flags, &run, layer, most); err != nil {
			return err
		}
		r.Runs = append(r.Runs, run)
		if err := p.say("%s", run.row()); err != nil {
			return err
		}
	}
	// the last run is that of all layers
	if err := p.notebookTexts(ctx, m, flags, longest, r); err != nil {
		return err
	}
	if p.json {
		return p.printJSON(r)
	}
	return nil
}

// notebookLogprobs are log p of the English completion and log(1 − p) of the Spanish one.
func (p *program) notebookLogprobs(ctx context.Context, m *ggmlsteer.Model, r *reproduction) error {
	for _, c := range []struct {
		name, text string
		theirs     float64
		of         func(ggmlsteer.Prob) float64
	}{
		{"log p of the English completion", notebookEnglish, -11.283, func(p ggmlsteer.Prob) float64 { return p.Log }},
		{"log(1 − p) of the Spanish completion", notebookSpanish, -7.581, func(p ggmlsteer.Prob) float64 { return p.LogComplement }},
	} {
		prompt, err := m.Tokenize(notebookPrompt, false)
		if err != nil {
			return err
		}
		whole, err := m.Tokenize(notebookPrompt+c.text, false)
		if err != nil {
			return err
		}
		probs, err := m.Logprobs(ctx, whole, len(prompt), 1, ggmlsteer.F32)
		if err != nil {
			return err
		}
		l := notebookLogprob{Name: c.name, Theirs: c.theirs}
		for _, prob := range probs {
			l.Ours += c.of(prob)
		}
		r.Logprobs = append(r.Logprobs, l)
		if err := p.say("%-46s %27.3f %27.3f\n", l.Name, l.Theirs, l.Ours); err != nil {
			return err
		}
	}
	return p.say("\n")
}

// notebookRun makes a run, and returns its longest vector alone.
func (p *program) notebookRun(ctx context.Context, m *ggmlsteer.Model, flags *modelFlags, run *notebookRun, layer, most int) (*loader.Steering, error) {
	job := &optimize.Job{
		Options: optimize.DefaultOptions(), Layers: optimize.Layers{List: []int{layer}}, Context: flags.ctxSize,
		Examples: []optimize.Example{{Prompt: notebookPrompt, Src: []string{notebookEnglish}, Dst: []string{notebookSpanish}}},
	}
	if run.allLayers {
		job.Layers = optimize.Layers{All: true}
	}
	lr := notebookLR
	job.Seed, job.LR = flags.seed, &lr
	for _, o := range optimize.OptionTable() {
		for _, option := range run.Options {
			if value, is := strings.CutPrefix(option, o.Name+"="); is {
				if err := o.Set(&job.Options, value); err != nil {
					return nil, err
				}
			}
		}
	}
	for _, limit := range []**int{&job.MaxIters, &job.MaxOutputConstrIters} {
		if job.DoOutputConstr || limit == &job.MaxIters {
			least := most
			if *limit != nil {
				least = min(most, **limit)
			}
			*limit = &least
		}
	}
	p.note("%s", run.Name)
	result, err := p.find(ctx, m, job, nil, func(optimize.Step) {})
	if err != nil {
		return nil, err
	}
	if result.Stop == optimize.StopInterrupted {
		return nil, context.Cause(ctx)
	}
	longest := &loader.Steering{Kind: result.Steering.Kind, Clamp: result.Steering.Clamp, Embd: result.Steering.Embd}
	run.Ours = notebookResult{Steps: result.Iters, Loss: result.Loss, Norm: -1}
	for i, at := range result.Steering.Layers {
		if n := result.Norms[strconv.Itoa(at)]; n > run.Ours.Norm {
			run.Ours.Norm = n
			longest.Layers, longest.Params = []int{at}, []loader.Parameters{result.Steering.At(i)}
		}
	}
	if run.allLayers {
		run.Ours.Layer = &longest.Layers[0]
	}
	if c := result.OutputConstrained; c != nil {
		run.Ours.Before = &c.NormBefore
	}
	run.Stop = result.Stop
	return longest, nil
}

// row is a run as a line of the table.
func (run *notebookRun) row() string {
	of := func(r notebookResult) string {
		return fmt.Sprintf(" %6d %10.3f %9.3f", r.Steps, r.Loss, r.Norm)
	}
	line := fmt.Sprintf("%-46s%s%s", run.Name, of(run.Theirs), of(run.Ours))
	if run.Stop == optimize.StopMaxIters && run.Theirs.Steps != run.Ours.Steps+1 {
		line += "  (ended before its target)"
	}
	line += "\n"
	if run.Theirs.Layer != nil {
		line += fmt.Sprintf("%-46s %27s %27s\n", "  the longest vector is that of", fmt.Sprintf("layer %d", *run.Theirs.Layer), fmt.Sprintf("layer %d", *run.Ours.Layer))
	}
	if run.Theirs.Before != nil && run.Ours.Before != nil {
		line += fmt.Sprintf("%-46s %27.3f %27.3f\n", "  norm before that stage", *run.Theirs.Before, *run.Ours.Before)
	}
	return line
}

// notebookTexts continues the notebook's prompts with the vector.
func (p *program) notebookTexts(ctx context.Context, m *ggmlsteer.Model, flags *modelFlags, steering *loader.Steering, r *reproduction) error {
	if err := p.say("\nContinuations with the vector of layer %d alone:\n", steering.Layers[0]); err != nil {
		return err
	}
	for _, c := range notebookPrompts {
		tokens, err := m.Tokenize(c.prompt, false)
		if err != nil {
			return err
		}
		g := &generation{program: p, model: m, precision: ggmlsteer.F32, options: ggmlsteer.GenerateOptions{Tokens: notebookTokens}, context: flags.context(m), prompts: [][]ggmlsteer.Token{tokens}}
		continued, err := g.batch(ctx, []ggmlsteer.Active{{Steering: steering, Strength: c.times}}, nil)
		if err != nil {
			return err
		}
		text := notebookText{c.prompt, c.times, continued[0].Text}
		r.Texts = append(r.Texts, text)
		if err := p.say("\n  × %+g  %s\n         %s\n", text.Strength, oneLine(text.Prompt), oneLine(text.Text)); err != nil {
			return err
		}
	}
	return nil
}

// Package demo holds the model that comes with llsteer, the job that finds its
// English-to-Spanish vector, and what it takes to see whether that vector works.
package demo

import (
	_ "embed"
	"encoding/json"
	"strings"
)

// Model is a Gemma-2 of 5.8 million parameters as a GGUF file.
//
//go:embed model.gguf
var Model []byte

// Job is the job file that finds the vector: with a positive strength it turns
// English into Spanish, with a negative one Spanish into English.
//
//go:embed spanish.yaml
var Job []byte

//go:embed prompts.json
var promptsJSON []byte

//go:embed languages.json
var rulesJSON []byte

// Prompts are beginnings of sentences that the job does not hold, in each language.
var Prompts struct{ English, Spanish []string }

var rules struct {
	Words        map[string][]string
	WordLetters  string  `json:"word_letters"`
	SpanishMarks string  `json:"spanish_marks"`
	MarkScore    float64 `json:"mark_score"`
	MinScore     float64 `json:"min_score"`
	MinRatio     float64 `json:"min_ratio"`
	LoopSpan     int     `json:"loop_span"`
	LoopRepeats  int     `json:"loop_repeats"`
	MinDistinct  float64 `json:"min_distinct"`
}

// stopWords[language][word]
var stopWords = map[string]map[string]bool{}

func init() {
	for _, file := range []struct {
		data []byte
		into any
	}{{promptsJSON, &Prompts}, {rulesJSON, &rules}} {
		if err := json.Unmarshal(file.data, file.into); err != nil {
			panic(err) // the files are part of the program
		}
	}
	for language, words := range rules.Words {
		stopWords[language] = map[string]bool{}
		for _, w := range words {
			stopWords[language][w] = true
		}
	}
}

// Language is "english", "spanish", or "" where the stop words of neither
// clearly lead: the rule of recipe/languages.py.
func Language(text string) string {
	text = strings.ToLower(text)
	english, spanish := 0.0, 0.0
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return !strings.ContainsRune(rules.WordLetters, r) }) {
		if stopWords["english"][word] {
			english++
		}
		if stopWords["spanish"][word] {
			spanish++
		}
	}
	for _, r := range text {
		if strings.ContainsRune(rules.SpanishMarks, r) {
			spanish += rules.MarkScore
		}
	}
	switch {
	case spanish >= rules.MinScore && spanish >= rules.MinRatio*english:
		return "spanish"
	case english >= rules.MinScore && english >= rules.MinRatio*spanish:
		return "english"
	}
	return ""
}

// Loops says whether a run of words comes again and again, or most words are
// repeats: the rule of recipe/languages.py.
func Loops(text string) bool {
	words := strings.Fields(text)
	runs, distinct := map[string]int{}, map[string]bool{}
	for i, w := range words {
		distinct[w] = true
		if i+rules.LoopSpan <= len(words) {
			run := strings.Join(words[i:i+rules.LoopSpan], " ")
			if runs[run]++; runs[run] >= rules.LoopRepeats {
				return true
			}
		}
	}
	return float64(len(distinct)) < rules.MinDistinct*float64(len(words))
}

/** Dark and light: as the system says, or as was chosen here. */

type Theme = "auto" | "light" | "dark";

const KEY = "orbit-theme";
const ORDER: Theme[] = ["auto", "light", "dark"];
const NAMES = { auto: "as the system", light: "light", dark: "dark" };

let chosen: Theme = ORDER.find((name) => name === localStorage.getItem(KEY)) ?? "auto";

export const theme = (): Theme => chosen;
export const themeName = (): string => NAMES[chosen];

export function nextTheme(): void {
  chosen = ORDER[(ORDER.indexOf(chosen) + 1) % ORDER.length] ?? "auto";
  localStorage.setItem(KEY, chosen);
  apply();
}

function apply(): void {
  const { classList } = document.documentElement;
  classList.toggle("light", chosen === "light");
  classList.toggle("dark", chosen === "dark");
  dispatchEvent(new Event("themechange"));
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
apply();

import DailyRepsBackup
import Foundation

/// What an app does about an error of `sync()`.
@MainActor func show(_ error: any Error) {
    switch error {
    case BackupError.lost:
        break  // the next sync() repeats the very same bytes: try again later
    case BackupError.refused(let problem) where problem.code == "credentials_invalid":
        askForPassword(error.localizedDescription)
    default:
        alert(error.localizedDescription)  // a sentence for a person, without a key or a word of the server
    }
}

@MainActor private func askForPassword(_ why: String) { print(why) }
@MainActor private func alert(_ text: String) { print(text) }
